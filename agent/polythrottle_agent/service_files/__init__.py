"""What `polythrottle install-service` lays out: data. @BIN@ is where the programs are."""
