"""The fields of the ID registers that KVM lets userspace write, and how each may be changed.

A line is a register, then its fields from high to low:

    NAME shift[:width]  lower values are safe, unsigned, 4 bits wide unless *width* says otherwise
    -                   the field is signed
    ^                   higher values are safe
    ^0                  higher values are safe, and zero, which means unknown
    =N                  only the host's own value is safe, or N
    >N                  besides, KVM takes no value below N

Source: Arm ARM, D24.2, for names and positions; the tables ftr_id_* in
arch/arm64/kernel/cpufeature.c for the kinds; kvm_arm64_ftr_safe_value in arch/arm64/kvm/sys_regs.c
for the three fields (PMUVer, DebugVer, PerfMon) that KVM treats otherwise, and the set_* functions
there for the minima.
"""

from __future__ import annotations

from typing import Final

TABLE: Final = """
ID_PFR0_EL1: DIT 24, CSV2 16, State3 12, State2 8, State1 4, State0 0
ID_PFR1_EL1: GIC 28, Virt_frac 24, Sec_frac 20, GenTimer 16, Virtualization 12, MProgMod 8,
    Security 4, ProgMod 0
ID_DFR0_EL1: PerfMon 24, MProfDbg 20, MMapTrc 16, CopTrc 12, MMapDbg 8, CopSDbg 4,
    CopDbg 0>6
ID_MMFR0_EL1: InnerShr 28-, FCSE 24, AuxReg 20, TCM 16, ShareLvl 12, OuterShr 8-, PMSA 4,
    VMSA 0
ID_MMFR1_EL1: BPred 28, L1TstCln 24, L1Uni 20, L1Hvd 16, L1UniSW 12, L1HvdSW 8, L1UniVA 4,
    L1HvdVA 0
ID_MMFR2_EL1: HWAccFlg 28, WFIStall 24, MemBarr 20, UniTLB 16, HvdTLB 12, L1HvdRng 8,
    L1HvdBG 4, L1HvdFG 0
ID_MMFR3_EL1: Supersec 28, CMemSz 24, CohWalk 20, PAN 16, MaintBcst 12, BPMaint 8,
    CMaintSW 4, CMaintVA 0
ID_ISAR0_EL1: Divide 24, Debug 20, Coproc 16, CmpBranch 12, BitField 8, BitCount 4, Swap 0
ID_ISAR1_EL1: Jazelle 28, Interwork 24, Immediate 20, IfThen 16, Extend 12, Except_AR 8,
    Except 4, Endian 0
ID_ISAR2_EL1: Reversal 28, PSR_AR 24, MultU 20, MultS 16, Mult 12, MultiAccessInt 8,
    MemHint 4, LoadStore 0
ID_ISAR3_EL1: T32EE 28, TrueNOP 24, T32Copy 20, TabBranch 16, SynchPrim 12, SVC 8, SIMD 4,
    Saturate 0
ID_ISAR4_EL1: SWP_frac 28, PSR_M 24, SynchPrim_frac 20, Barrier 16, SMC 12, Writeback 8,
    WithShifts 4, Unpriv 0
ID_ISAR5_EL1: RDM 24, CRC32 16, SHA2 12, SHA1 8, AES 4, SEVL 0
ID_MMFR4_EL1: EVT 28, CCIDX 24, LSM 20, HPDS 16, CnP 12, XNX 8, AC2 4, SpecSEI 0^
ID_ISAR6_EL1: I8MM 24, BF16 20, SPECRES 16, SB 12, FHM 8, DP 4, JSCVT 0
MVFR0_EL1: FPRound 28, FPShVec 24, FPSqrt 20, FPDivide 16, FPTrap 12, FPDP 8, FPSP 4,
    SIMDReg 0
MVFR1_EL1: SIMDFMAC 28, FPHP 24, SIMDHP 20, SIMDSP 16, SIMDInt 12, SIMDLS 8, FPDNaN 4,
    FPFtZ 0
MVFR2_EL1: FPMisc 4, SIMDMisc 0
ID_PFR2_EL1: SSBS 4, CSV3 0
ID_DFR1_EL1: MTPMU 0-
ID_MMFR5_EL1: ETS 0
ID_AA64PFR0_EL1: CSV3 60, CSV2 56, DIT 48, AMU 44, MPAM 40, SEL2 36, SVE 32, RAS 28, GIC 24,
    AdvSIMD 20-, FP 16-, EL3 12, EL2 8, EL1 4>1, EL0 0>1
ID_AA64PFR1_EL1: DF2 56, GCS 44, MTE_frac 40-, SME 24, MPAM_frac 16, RAS_frac 12, MTE 8,
    SSBS 4, BT 0
ID_AA64PFR2_EL1: FPMR 32, GCIE 12, MTEFAR 8, MTESTOREONLY 4
ID_AA64ZFR0_EL1: F64MM 56, F32MM 52, F16MM 48, I8MM 44, SM4 40, SHA3 32, B16B16 24, BF16 20,
    BitPerm 16, EltPerm 12, AES 4, SVEver 0
ID_AA64SMFR0_EL1: FA64 63:1=0, LUT6 61:1=0, LUTv2 60:1=0, SMEver 56=0, I16I64 52=0,
    F64F64 48:1=0, I16I32 44=0, B16B16 43:1=0, F16F16 42:1=0, F8F16 41:1=0, F8F32 40:1=0,
    I8I32 36=0, F16F32 35:1=0, B16F32 34:1=0, BI32I32 33:1=0, F32F32 32:1=0, SF8FMA 30:1=0,
    SF8DP4 29:1=0, SF8DP2 28:1=0, SBitPerm 25:1=0, AES 24:1=0, SFEXPA 23:1=0, STMOP 16:1=0,
    SMOP4 0:1=0
ID_AA64FPFR0_EL1: F8CVT 31:1=0, F8FMA 30:1=0, F8DP4 29:1=0, F8DP2 28:1=0, F8MM8 27:1=0,
    F8MM4 26:1=0, F16MM2 15:1=0, F8E4M3 1:1=0, F8E5M2 0:1=0
ID_AA64DFR0_EL1: DoubleLock 36-, PMSVer 32, CTX_CMPs 28, WRPs 20, BRPs 12, PMUVer 8,
    DebugVer 0>6
ID_AA64ISAR0_EL1: RNDR 60, TLB 56, TS 52, FHM 48, DP 44, SM4 40, SM3 36, SHA3 32, RDM 28,
    ATOMIC 20, CRC32 16, SHA2 12, SHA1 8, AES 4
ID_AA64ISAR1_EL1: LS64 60, XS 56, I8MM 52, DGH 48, BF16 44, SPECRES 40, SB 36, FRINTTS 32,
    GPI 28, GPA 24, LRCPC 20, FCMA 16, JSCVT 12, API 8=0, APA 4=0, DPB 0
ID_AA64ISAR2_EL1: ATS1A 60, LUT 56, CSSC 52, RPRFM 48, CLRBHB 28, BC 20, MOPS 16, APA3 12=0,
    GPA3 8, RPRES 4, WFxT 0
ID_AA64ISAR3_EL1: FPRCVT 28, LSUI 24, LSFE 16, FAMINMAX 4
ID_AA64MMFR0_EL1: ECV 60, FGT 56, EXS 44, TGRAN4_2 40=1, TGRAN64_2 36=1, TGRAN16_2 32=1,
    TGRAN4 28-, TGRAN64 24-, TGRAN16 20, BIGENDEL0 16, SNSMEM 12, BIGEND 8, ASIDBITS 4, PARANGE 0
ID_AA64MMFR1_EL1: ECBHB 60, TIDCP1 52, AFP 44, HCX 40, ETS 36, TWED 32, XNX 28, SpecSEI 24^,
    PAN 20, LO 16, HPDS 12, VH 8, VMIDBits 4, HAFDBS 0
ID_AA64MMFR2_EL1: E0PD 60, EVT 56, BBM 52, TTL 48, FWB 40, IDS 36, AT 32, ST 28, NV 24,
    CCIDX 20, VARange 16, IESB 12, LSM 8, UAO 4, CnP 0
ID_AA64MMFR3_EL1: S1POE 16, S1PIE 8, SCTLRX 4, TCRX 0
ID_AA64MMFR4_EL1: E2H0 24-, NV_frac 20
CTR_EL0: DIC 29:1, IDC 28:1, CWG 24^0, ERG 20^0, DminLine 16, L1Ip 14:2=2>2, IminLine 0
DCZID_EL0: DZP 4:1=1, BS 0
"""
