#!/bin/sh
# Prints what the ACPI power meter shows, as an external meter of polythrottle does. Starts no other program: it is
# called many times a second.
read -r microwatts < /sys/bus/acpi/drivers/power_meter/ACPI000D:00/power1_average || exit 1
echo "$((microwatts / 1000)) mW"
