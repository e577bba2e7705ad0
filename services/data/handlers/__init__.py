"""What the service does, one function a use case. They are given a unit and neither open nor commit it."""
