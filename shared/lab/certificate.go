package lab

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Certificates are the PEM files of a throwaway authority, of a server at 127.0.0.1
// and localhost, and of a client.
type Certificates struct {
	CAFile        string // the authority's certificate
	ServerFile    string // certificate and authority of the server
	ServerKeyFile string // its key, PKCS #8, without a password
	ClientFile    string
	ClientKeyFile string
	ServerBundle  string // certificate, authority and key in one file, as Kafka's PEM store wants it
	ClientName    string // the client as Kafka's access control lists name it

	ca     *x509.CertPool
	client tls.Certificate
}

// signer is an authority's certificate with its key.
type signer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewCertificates makes an authority and two certificates in dir, valid for a day
// around now.
func NewCertificates(dir string, now time.Time) (*Certificates, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	from, to := now.Add(-time.Hour), now.Add(24*time.Hour)
	caPEM, _, ca, err := issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: "catalog-backup lab"}, NotBefore: from, NotAfter: to,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, nil)
	if err != nil {
		return nil, err
	}
	serverPEM, serverKey, _, err := issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: "localhost"}, NotBefore: from, NotAfter: to,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, ca)
	if err != nil {
		return nil, err
	}
	clientPEM, clientKey, _, err := issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: "client"}, NotBefore: from, NotAfter: to,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, ca)
	if err != nil {
		return nil, err
	}
	c := &Certificates{ca: x509.NewCertPool(), ClientName: "User:CN=client"}
	c.ca.AddCert(ca.cert)
	for _, f := range []struct {
		path *string
		name string
		pem  []byte
	}{
		{&c.CAFile, "ca.pem", caPEM},
		{&c.ServerFile, "server.pem", bytes.Join([][]byte{serverPEM, caPEM}, nil)},
		{&c.ServerKeyFile, "server.key", serverKey},
		{&c.ServerBundle, "server-bundle.pem", bytes.Join([][]byte{serverPEM, caPEM, serverKey}, nil)},
		{&c.ClientFile, "client.pem", clientPEM},
		{&c.ClientKeyFile, "client.key", clientKey},
	} {
		*f.path = filepath.Join(dir, f.name)
		if err := os.WriteFile(*f.path, f.pem, 0o600); err != nil {
			return nil, err
		}
	}
	c.client, err = tls.X509KeyPair(clientPEM, clientKey)
	return c, err
}

// clientTLS trusts the authority and shows the client's certificate if asked to.
func (c *Certificates) clientTLS() *tls.Config {
	return &tls.Config{RootCAs: c.ca, Certificates: []tls.Certificate{c.client}, MinVersion: tls.VersionTLS12}
}

// issue makes a key and a certificate for it, signed by ca or, without one, by
// itself.
func issue(template *x509.Certificate, ca *signer) (certPEM, keyPEM []byte, made *signer, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, nil, err
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)); err != nil {
		return nil, nil, nil, err
	}
	by := &signer{template, key}
	if ca != nil {
		by = ca
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by.cert, &key.PublicKey, by.key)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("lab: make a certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, nil, err
	}
	certPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
	return certPEM, keyPEM, &signer{cert, key}, nil
}
