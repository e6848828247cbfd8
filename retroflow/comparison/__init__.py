"""A model beside everything a user would pick instead: rows of one table, and curves."""
