"""What `polythrottle install-service` lays out: data.

@BIN@ is where the programs are, @GPU@ the option that names the GPU to serve, where there are several.
"""
