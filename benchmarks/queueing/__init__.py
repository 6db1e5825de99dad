"""Makes the table of `polythrottle.optimizer.queue_table`."""
