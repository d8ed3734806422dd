"""What a load test sends."""
