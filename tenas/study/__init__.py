"""The correlation study: measures of discrete networks against their accuracy when trained. Only ``score`` needs torch."""
