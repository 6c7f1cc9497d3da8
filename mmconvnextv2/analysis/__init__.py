"""Looks into trained networks and what they cost; import the module you need."""
