"""What Farshore is tried with: suites for platforms, faults, and a laboratory of private hypervisors."""
