#!/bin/sh
# Runs in a guest: an ordinary client of /dev/tpmrm0. $1: the manager's CA certificate (PEM).
set -eu
ca=$1
work=$(mktemp -d)
cd "$work"
export TPM2TOOLS_TCTI=device:/dev/tpmrm0

show() {
  echo "guest\$ $*"
  "$@"
}

show tpm2_getcap properties-fixed | sed -n '1,12p'
show tpm2_getrandom --hex 16
echo

echo "== create, load, sign, verify"
echo "signed by a TPM in another VM" >message
show tpm2_createprimary -Q -C o -g sha256 -G ecc -c primary.ctx
show tpm2_create -Q -C primary.ctx -G ecc -u key.pub -r key.priv
show tpm2_load -Q -C primary.ctx -u key.pub -r key.priv -c key.ctx
show tpm2_sign -Q -c key.ctx -g sha256 -o message.sig message
show tpm2_verifysignature -c key.ctx -g sha256 -m message -s message.sig

echo "== seal to PCR 16, unseal, change PCR 16, fail to unseal"
printf 'a secret' >secret
show tpm2_createpolicy -Q --policy-pcr -l sha256:16 -L pcr.policy
show tpm2_create -Q -C primary.ctx -L pcr.policy -i secret -u seal.pub -r seal.priv
show tpm2_load -Q -C primary.ctx -u seal.pub -r seal.priv -c seal.ctx
show tpm2_unseal -c seal.ctx -p pcr:sha256:16
echo
show tpm2_pcrextend 16:sha256=0000000000000000000000000000000000000000000000000000000000000001
if tpm2_unseal -c seal.ctx -p pcr:sha256:16 2>/dev/null; then
  echo "unsealed although PCR 16 has changed"
  exit 1
fi
echo "refused, as it should be"
show tpm2_pcrreset 16

echo "== quote by a restricted key under the EK, checked"
show tpm2_createek -Q -c ek.ctx -G ecc -u ek.pub
show tpm2_createak -Q -C ek.ctx -c ak.ctx -G ecc -g sha256 -s ecdsa -u ak.pem -f pem -n ak.name
show tpm2_quote -Q -c ak.ctx -l sha256:0,7,16 -q 00112233 -m quote.msg -s quote.sig -o quote.pcrs -g sha256
show tpm2_checkquote -Q -u ak.pem -m quote.msg -s quote.sig -f quote.pcrs -q 00112233 -g sha256
echo "the quote is good"

echo "== EK certificate from NV, verified against the manager's CA"
show tpm2_nvread -C o 0x01c0000a -o ek.der
openssl x509 -inform der -in ek.der -out ek.pem
show openssl x509 -in ek.pem -noout -issuer -ext subjectAltName,extendedKeyUsage
show openssl verify -CAfile "$ca" ek.pem
tpm2_readpublic -Q -c ek.ctx -f pem -o ek-key.pem
openssl x509 -in ek.pem -noout -pubkey | cmp - ek-key.pem
echo "the certificate certifies this TPM's EK"

cd /
rm -r "$work"
echo "demo: all good"
