"""What a server and a site need so that the server learns the sum of the sites' updates alone.

The protocol is that of Bonawitz et al. 2017 ("Practical Secure Aggregation for Privacy-Preserving Machine Learning"),
with the sparse neighbours of Bell et al. 2020 ("Secure Single-Server Aggregation with (Poly)Logarithmic Overhead")
where sites are many. The site's half is client/masking.py, the server's server/ceremony.py; what it protects, and what
not, is in docs/secure_aggregation.md.
"""
