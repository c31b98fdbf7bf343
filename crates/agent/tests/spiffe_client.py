"""The stock Python client of the Workload API, as anybody would use it.

Prints one line of JSON for the identity that it gets, another one when it is told of the next, and ends. Each says whether
an authority of the bundle issued the leaf, and whether the private key is the leaf's.

Usage: spiffe_client.py ENDPOINT
"""

import json
import sys
import threading

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from spiffe import X509Source

PATIENCE_S = 60


def spki(key):
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def issued(leaf, authority):
    try:
        leaf.verify_directly_issued_by(authority)
    except Exception:  # whatever the reason, this one did not issue it
        return False
    return True


def tell(source):
    svid = source.get_x509_context().default_svid
    bundle = source.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
    told = {
        "id": str(svid.spiffe_id),
        "serial": str(svid.leaf.serial_number),
        "chain": len(svid.cert_chain),
        "authorities": len(bundle.x509_authorities),
        "issued": any(issued(svid.leaf, authority) for authority in bundle.x509_authorities),
        "key_fits": spki(svid.private_key.public_key()) == spki(svid.leaf.public_key()),
    }
    print(json.dumps(told), flush=True)


def main():
    source = X509Source(socket_path=sys.argv[1], timeout_in_seconds=PATIENCE_S)
    rotated = threading.Event()
    source.subscribe_for_updates(rotated.set)
    tell(source)
    if not rotated.wait(PATIENCE_S):
        sys.exit("was not told of a rotation")
    tell(source)
    source.close()


main()
