"""The figures that the README quotes, reproducible: ``python -m bench``, or ``make bench``."""
