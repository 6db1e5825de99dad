// Gives the two CPUs of QEMU's q35 machine ACPI P-states, so that Debian's own acpi-cpufreq driver makes a
// policy for each. The state lives in two of the byte-wide ports of QEMU's pc-testdev (0xE0, 0xE1): the driver
// writes the number of the P-state there, and the power meter at the end reads it back.
DefinitionBlock ("", "SSDT", 2, "POLYTH", "PSTATES", 1)
{
    External (\_SB.CPUS.C000, DeviceObj)
    External (\_SB.CPUS.C001, DeviceObj)

    OperationRegion (\PTEP, SystemIO, 0xE0, 2)
    Field (\PTEP, ByteAcc, NoLock, Preserve)
    {
        PST0, 8,
        PST1, 8
    }

    // MHz, mW at full load, transition and bus-master latency in us, control and status value
    Name (\PTSS, Package ()
    {
        Package () { 2400, 15000, 10, 10, 0, 0 },
        Package () { 2100, 11500, 10, 10, 1, 1 },
        Package () { 1800,  8600, 10, 10, 2, 2 },
        Package () { 1500,  6400, 10, 10, 3, 3 },
        Package () { 1200,  4700, 10, 10, 4, 4 },
        Package () {  900,  3500, 10, 10, 5, 5 }
    })

    Scope (\_SB.CPUS.C000)
    {
        Name (_PCT, Package ()
        {
            ResourceTemplate () { Register (SystemIO, 8, 0, 0xE0) },
            ResourceTemplate () { Register (SystemIO, 8, 0, 0xE0) }
        })
        Method (_PSS) { Return (\PTSS) }
        Method (_PPC) { Return (0) }
    }

    Scope (\_SB.CPUS.C001)
    {
        Name (_PCT, Package ()
        {
            ResourceTemplate () { Register (SystemIO, 8, 0, 0xE1) },
            ResourceTemplate () { Register (SystemIO, 8, 0, 0xE1) }
        })
        Method (_PSS) { Return (\PTSS) }
        Method (_PPC) { Return (0) }
    }

    // What one CPU draws in a P-state; nothing for a port that was never written.
    Method (\PTMW, 1)
    {
        If (LGreaterEqual (Arg0, SizeOf (\PTSS))) { Return (Zero) }
        Return (DerefOf (Index (DerefOf (Index (\PTSS, Arg0)), 1)))
    }

    // An ACPI power meter, for Debian's own acpi_power_meter driver. It caches for the sampling time given
    // here as 10 ms.
    Device (\_SB.PTPM)
    {
        Name (_HID, "ACPI000D")
        Name (_UID, 1)
        Name (_PMC, Package () { 1, 0, 0, 100000, 10, 100, 100, 0, 0xFFFFFFFF, 0, 0, "P-states", "1", "polythrottle" })
        Method (_PMM) { Return (Add (\PTMW (\PST0), \PTMW (\PST1))) }
        Method (_PMD) { Return (Package () { \_SB.CPUS.C000, \_SB.CPUS.C001 }) }
        Method (_GAI) { Return (1000) }
    }
}
