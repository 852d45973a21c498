"""The hardware TPM, through tpm2-pytss. Nothing else in the product speaks to it.

``connection`` owns the ESAPI context and its thread; the other modules say what is asked of the TPM. tpm2-pytss is
imported when a connection opens: under emulation that takes seconds.
"""
