"""EC2 and EBS as a platform: snapshots as points, by the EBS direct APIs, without a machine in between."""
