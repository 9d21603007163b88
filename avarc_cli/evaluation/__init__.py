"""Finished runs compared with each other, and protocols: tables of runs beside published values."""
