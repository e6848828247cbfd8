"""The living database: documents can be added, removed and replaced, and every change is a version."""
