"""The data sets to measure on, their files and their variants."""
