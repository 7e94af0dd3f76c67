"""What several processes of one training say to one another."""
