package exit

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"catalog-backup/shared/config"

	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"
)

func TestCodes(t *testing.T) {
	for want, err := range map[int]error{
		Good:        nil,
		Other:       errors.New("x"),
		Usage:       fmt.Errorf("while: %w", &config.Error{Key: "k"}),
		Busy:        With(Busy, errors.New("x")),
		Unreachable: fmt.Errorf("while: %w", Withf(Unreachable, "x")),
		Warnings:    Silent(Warnings),
	} {
		require.Equal(t, want, Code(err), "%v", err)
	}
	require.NoError(t, Silent(Good))
	inner := errors.New("x")
	require.ErrorIs(t, With(Damage, inner), inner)
	require.Equal(t, NotFound, Code(With(NotFound, With(Busy, inner))), "the outer one counts")
}

func TestJSONIsOneValueAndALine(t *testing.T) {
	var b bytes.Buffer
	require.NoError(t, JSON(&b, []string{}))
	require.Equal(t, "[]\n", b.String())
	require.Error(t, JSON(&b, func() {}))
	require.Equal(t, "[]\n", b.String(), "half a value is never printed")
}

func TestNoVerbIsAUsageError(t *testing.T) {
	root := &cobra.Command{Use: "p"}
	root.AddCommand(&cobra.Command{Use: "status", Run: func(*cobra.Command, []string) {}})
	require.ErrorContains(t, noVerb(root, nil), "name a verb; see p --help")
	err := noVerb(root, []string{"statsu"})
	require.ErrorContains(t, err, `"statsu" is not a verb; did you mean status? see p --help`)
	require.Equal(t, Usage, Code(err))
	require.Equal(t, Usage, Code(Args(cobra.NoArgs)(root, []string{"x"})))
}

func TestOneLine(t *testing.T) {
	for in, want := range map[string]string{
		"":                       "",
		" a\n\tb  c ":            "a b c",
		"12345678":               "12345678",
		"123456789":              "12345678 …",
		"1234567\u00e9":          "1234567 …",
		"a\xffb":                 "a\uFFFDb",
		"ab\xff":                 "ab\uFFFD",
		"one twothree four five": "one twot …",
	} {
		require.Equal(t, want, OneLine(in, 8), "%q", in)
	}
}
