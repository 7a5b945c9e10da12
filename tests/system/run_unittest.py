#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs one module of unittest tests; exit status 77 if every test was skipped, so that ctest shows it as skipped."""
import sys
import unittest

suite = unittest.defaultTestLoader.loadTestsFromName(sys.argv[1])
result = unittest.TextTestRunner(verbosity=2).run(suite)
if not result.wasSuccessful() or result.testsRun == 0:
    sys.exit(1)
sys.exit(77 if len(result.skipped) == result.testsRun else 0)
