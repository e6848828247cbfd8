"""What `retroflow doctor` looks at."""
