/* The models. Clock ranges, memory clocks and power limits of the V100, A100 and H100 are those of published
 * `nvidia-smi -q` logs (sources in the GPU profiles). Invented: the coefficients of power, the V100's and
 * P100's refresh periods, the H100's second memory clock, and all of the RTX's but its range. Refresh of
 * A100 and H100: published as about 100 ms, of which the power reading sees about 25 ms. */
#include "fakenvml.h"

const struct kind KINDS[] = {
    {.name = "P100", .product = "Tesla P100-PCIE-16GB", .architecture = PASCAL, .pci_device = 0x15f810de,
     .low_mhz = 544, .top_mhz = 1329, .step_mhz = 12.66, .idle_mhz = 405, .memory_mhz = {715},
     .min_mw = 125000, .max_mw = 250000, .default_mw = 250000,
     .energy_period_us = 20000, .power_period_us = 20000, .power_window_us = 10000,
     .idle_w = 27, .memory_w = 20, .linear_w = 60, .cubic_w = 120},
    {.name = "V100", .product = "Tesla V100-SXM2-32GB", .architecture = VOLTA, .pci_device = 0x1db510de,
     .low_mhz = 135, .top_mhz = 1530, .step_mhz = 7.5, .idle_mhz = 135, .memory_mhz = {877},
     .min_mw = 150000, .max_mw = 300000, .default_mw = 300000,
     .energy_period_us = 20000, .power_period_us = 20000, .power_window_us = 10000,
     .idle_w = 25, .memory_w = 15, .linear_w = 70, .cubic_w = 160},
    {.name = "A100-40", .product = "NVIDIA A100-SXM4-40GB", .architecture = AMPERE, .is_ga100 = true,
     .pci_device = 0x20b010de, .low_mhz = 210, .top_mhz = 1410, .step_mhz = 15, .idle_mhz = 210,
     .memory_mhz = {1215}, .min_mw = 100000, .max_mw = 400000, .default_mw = 400000,
     .energy_period_us = 100000, .power_period_us = 100000, .power_window_us = 25000,
     .idle_w = 32, .memory_w = 20, .linear_w = 90, .cubic_w = 210},
    {.name = "H100", .product = "NVIDIA H100 80GB HBM3", .architecture = HOPPER, .pci_device = 0x233010de,
     .low_mhz = 210, .top_mhz = 1980, .step_mhz = 15, .idle_mhz = 345, .memory_mhz = {2619, 1593},
     .min_mw = 200000, .max_mw = 700000, .default_mw = 700000,
     .energy_period_us = 100000, .power_period_us = 100000, .power_window_us = 25000,
     .idle_w = 40, .memory_w = 30, .linear_w = 130, .cubic_w = 380},
    {.name = "RTX", .product = "NVIDIA GeForce RTX 3090", .architecture = AMPERE, .pci_device = 0x220410de,
     .low_mhz = 210, .top_mhz = 2100, .step_mhz = 15, .idle_mhz = 210,
     .memory_mhz = {9751, 9501, 5001, 810, 405}, .min_mw = 100000, .max_mw = 385000, .default_mw = 350000,
     .energy_period_us = 100000, .power_period_us = 100000, .power_window_us = 100000,
     .idle_w = 15, .memory_w = 60, .linear_w = 80, .cubic_w = 260},
    {.name = "Orin", .product = "Orin (nvgpu)", .architecture = ARCH_UNKNOWN},
};
const unsigned N_KINDS = sizeof KINDS / sizeof KINDS[0];
