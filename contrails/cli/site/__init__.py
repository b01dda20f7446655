"""Commands about the place where jobs run."""
