"""Measure subjects in shards, resume killed jobs, keep one row per measurement.

A round of a search and a study of measures differ only in what a subject is. Only ``score`` needs torch.
"""
