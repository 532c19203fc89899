"""What the job runs on: clusters and images."""
