"""The stages: one module each, with one typed function of the same name.

Its signature makes the subcommand (tenas.cli): what stands before ``*`` is positional, the others are options; its import
closure makes its code digest (tenas.code). Heavy imports belong into the function.
"""
