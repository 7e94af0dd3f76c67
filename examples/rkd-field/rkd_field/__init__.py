"""Four methods of the field as a third-party package: IGDM, PeerAiD, Fair-ARD and ADR, each in a file of its own."""
