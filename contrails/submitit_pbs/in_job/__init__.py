"""The part of the plugin that runs inside a PBS job."""
