"""Find out what is installed in this environment, and how to install what is missing."""
