{{/* site.yaml: the program's settings from values.config, and over them what follows from the other values. */}}
{{- define "site.settings" -}}
{{- $coordinator := dict "enrolment_address" (required "enrolment.coordinator: say host:port where this site enrols, as its invitation says" .Values.enrolment.coordinator) -}}
{{- with .Values.proxy.url -}}
{{- $_ := set $coordinator "proxy" . -}}
{{- end -}}
{{- if .Values.proxy.existingSecret -}}
{{- $_ := set $coordinator "proxy_credentials_file" "/run/wardround/proxy.credentials" -}}
{{- end -}}
{{- $own := dict "coordinator" $coordinator "policy" "/etc/wardround/policy/policy.yaml" "runner" (include "site.runner" . | fromYaml) -}}
{{- if .Values.metrics.enabled -}}
{{- $_ := set $own "metrics" (dict "host" "0.0.0.0" "port" .Values.metrics.port) -}}
{{- end -}}
{{- toYaml (mergeOverwrite (deepCopy .Values.config) $own) -}}
{{- end -}}

{{/* The section `runner` of site.yaml. */}}
{{- define "site.runner" -}}
kind: {{ .Values.runner.kind }}
{{- end -}}
