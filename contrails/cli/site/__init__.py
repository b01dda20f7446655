"""Commands about the sites where jobs run."""
