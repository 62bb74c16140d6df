"""The stages: one module each, with one typed function of the same name.

Its signature defines the subcommand (tenas.cli): parameters before ``*`` are positional, the others are options. Its import
closure defines its code digest (tenas.code). Heavy imports belong in the function.
"""
