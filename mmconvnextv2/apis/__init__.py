"""Whole jobs in one call, each in the module of its name; `mmconvnextv2` has the functions."""
