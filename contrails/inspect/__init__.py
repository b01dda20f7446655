"""Looking at data: what a file holds, pictures of it, and labels that a person should look at."""
