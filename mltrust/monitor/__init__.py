"""What is watched of models in production."""
