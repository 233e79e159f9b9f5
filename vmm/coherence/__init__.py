"""The subject: which guest memory is Write-Back at stage 2, how that is known, and what is owed.

capability   what this kernel offers: asked, and tried on a scratch VM
policy       what to ask the kernel for: pure, decided before any slot exists
ledger       what each guest range was promised, and the cache maintenance it is owed
verdict      what stage 2 gives a range, by a scratch guest's accesses
dump         what stage 2 has, as debugfs shows it
explain      what an errno means: IPA -> slot -> VMA -> cause -> remedy
"""
