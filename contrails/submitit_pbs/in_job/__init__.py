"""What the plugin runs inside of a PBS job."""
