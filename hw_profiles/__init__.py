"""What hardware exists and how fast it is: profiles, topology and the measured performance model."""
