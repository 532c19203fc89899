"""What is under ``deploy``: images, packages, cron, systemd, Airflow, Kubernetes."""
