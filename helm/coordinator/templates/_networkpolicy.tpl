{{/* Rules that several policies have. */}}

{{- define "coordinator.dnsEgress" -}}
- to: {{- toYaml .root.Values.networkPolicy.dnsTo | nindent 4 }}
  ports:
    - {port: 53, protocol: UDP}
    - {port: 53, protocol: TCP}
{{- end -}}

{{- define "coordinator.databaseEgress" -}}
{{- if .root.Values.postgresql.enabled -}}
- to:
    - podSelector:
        matchLabels: {{- include "coordinator.selector" (dict "root" .root "component" "postgresql") | nindent 10 }}
  ports:
    - {port: 5432, protocol: TCP}
{{- else -}}
- to: {{- toYaml (required "networkPolicy.databaseTo: say where the database is, such as [{ipBlock: {cidr: 10.0.0.5/32}}], or turn networkPolicy.enabled off" .root.Values.networkPolicy.databaseTo) | nindent 4 }}
  ports:
    - {port: {{ .root.Values.networkPolicy.databasePort }}, protocol: TCP}
{{- end -}}
{{- end -}}

{{/* A component that speaks to the database and to nobody else. Takes root, component, and hooks where it is a hook's. */}}
{{- define "coordinator.databaseOnlyPolicy" -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ include "coordinator.fullname" .root }}-{{ .component }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "coordinator.labels" . | nindent 4 }}
  {{- with .hooks }}
  annotations:
    helm.sh/hook: {{ . }}
    helm.sh/hook-weight: "-10"
    helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
  {{- end }}
spec:
  podSelector:
    matchLabels: {{- include "coordinator.selector" . | nindent 6 }}
  policyTypes: [Ingress, Egress]
  ingress: []
  egress:
    {{- include "coordinator.dnsEgress" . | nindent 4 }}
    {{- include "coordinator.databaseEgress" . | nindent 4 }}
{{- end -}}
