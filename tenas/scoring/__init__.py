"""The engine of every measurement: subjects, measured in shards, resumed where a job was killed, kept one row each.

A round of a search and a study of measures differ only in what a subject is. Only ``score`` needs torch.
"""
