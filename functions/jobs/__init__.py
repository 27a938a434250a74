"""Scheduled jobs: one small file each. Schedules stand in serverless.yml and nowhere else."""
