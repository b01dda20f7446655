"""What is fitted on records that members have not seen, and how good the result is."""
