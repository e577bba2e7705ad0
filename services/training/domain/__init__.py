"""What is decided about jobs, without knowing where they are kept or run. Standard library, libs.errors and the pure part of modelkit."""
