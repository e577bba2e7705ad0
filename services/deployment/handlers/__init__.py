"""What the deployment service does: one function a use case, each inside a unit that its caller opened."""
