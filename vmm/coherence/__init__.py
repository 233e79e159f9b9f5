"""The subject: which memory a guest gets Write-Back, how we know, and what we owe where it isn't.

capability   what this kernel offers            (asked, and proved on a scratch VM)
policy       what we therefore ask for          (pure: decided before any slot exists)
ledger       what each guest range was promised (asked by whoever reads guest memory)
verdict      what stage 2 really gave           (proved by a scratch guest)
dump         what the kernel says that stage 2 has (debugfs)
explain      what a mute errno means            (IPA -> slot -> VMA -> cause -> remedy)
"""
