"""What people ask for and that takes a while: replicate, checkpoint, drill, failover, clean-up."""
