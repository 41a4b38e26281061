"""The columns of reports' tables: a row per defense, and a row per attack."""
