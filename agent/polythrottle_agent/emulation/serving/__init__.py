"""An HTTP inference service in front of an emulated board. Its service times and energies are emulated."""
