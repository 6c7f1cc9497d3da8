"""The command `mmconvnextv2`: one module a command, each a thin form of a call in Python.

A command line is read without torch and OpenMMLab, so that `--help` answers at once. A command
module has `parser()`, and `run(argv)`, which does the work and returns an exit code.
"""
